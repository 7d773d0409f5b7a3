"""What dealer, hospital and vendor compute and say to each other, on halves of numbers."""
