"""Publishers and receipts."""
