"""Plans that are shipped, one YAML file each: `hmoe sweep run NAME`."""
