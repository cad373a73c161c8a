"""The folder that goes to another device: model, preprocessing, scripts, checksums."""
