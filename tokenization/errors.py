"""What a user can put right: the message names the value, the file and the remedy in one line; commands exit with 2."""


class InputError(ValueError):
    pass
