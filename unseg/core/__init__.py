"""Code shared by all stages: artefact files, parameters, messages. It imports nothing from the other packages of unseg."""
