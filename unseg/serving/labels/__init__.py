"""Label maps and detections in the formats of annotation tools: export (`formats`) and import (`corrections`)."""
