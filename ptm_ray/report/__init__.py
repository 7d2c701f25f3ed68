"""What a person sees of a run: pictures, tables, the card."""
