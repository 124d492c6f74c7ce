"""The demo: a real video in, a trained model, a generated video and a report out."""
