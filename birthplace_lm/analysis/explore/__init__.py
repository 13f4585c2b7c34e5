"""What softmax attention can and cannot express, as checks of predictions. Needs no trained model."""
