"""What SpeciaRL is compared with, commands of their own: sft on the parts of train.py, cased by retrieval."""
