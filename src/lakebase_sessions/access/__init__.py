"""Who may do what in a Lakebase: found out, given and taken back."""
