"""Files that are whole or not there, values that JSON can hold, facts about the machine."""
