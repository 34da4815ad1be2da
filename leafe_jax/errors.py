"""The one exception type that a user is meant to read."""


class UserError(ValueError):
    """Wrong config, file or checkpoint. The message is one line that names the field or file, the
    value found and what is allowed; `main` prints it and exits with code 2."""
