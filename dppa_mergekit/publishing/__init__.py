"""Model cards and upload to the Hub."""
