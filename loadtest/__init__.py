"""Locust users at the demo: every answer is compared with the truth, while its Valkey and its nodes are broken."""
