"""What a model is: pure torch, knows no cluster and no storage."""
