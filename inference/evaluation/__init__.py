"""Measures a detector on labelled images with the metrics of COCO; knows no framework."""
