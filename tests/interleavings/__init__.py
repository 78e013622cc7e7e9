"""Every race of the core, scripted: who stops where, what happens meanwhile, and who may get what."""
