"""What one worker does: its parts (`worker`), its loop (`loop`), its checkpoints (`checkpoint`); no Ray in here."""
