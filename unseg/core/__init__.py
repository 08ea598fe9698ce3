"""What every step shares: artefact files, parameters, messages. Nothing here imports another folder."""
