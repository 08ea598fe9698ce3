"""Files in and out: photographs, data sets, the forms in which artefacts travel."""
