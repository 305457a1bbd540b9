"""What a finished run proves of its model. `diffleak epsilon` lives here: a room of that name would hide the function."""
