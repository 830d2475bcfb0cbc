"""Recognises, inspects and decodes what people upload; knows no web framework.

The upload counts frames with the functions that the detection pipeline later decodes with, so the
frames that are billed are exactly the frames in which something is looked for.
"""
