"""Configuration: dataclasses (`schema`), strict decoding (`decode`), composition from conf/ (`compose`, Hydra)."""
