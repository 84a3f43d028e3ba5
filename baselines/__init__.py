"""What SpeciaRL is compared with: commands of their own, on train.py's data, LoRA, update and evaluation."""
