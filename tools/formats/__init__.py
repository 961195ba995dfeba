"""Annotation formats, one module each: `read(source, problems)` gives `raw.RawData`."""

FORMATS = ("coco", "voc", "labelme", "yolo", "deeppcb")
