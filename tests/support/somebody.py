"""Commands run as a user without rights, wherever the checkout lies.

The one capability that is left only lets the user read the checkout, which may lie in a closed home directory; it
opens no socket, no map and no table.
"""

#: Put before a command. 65534 is ``nobody`` on Linux.
AS_NOBODY = (
    "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
    "--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search",
)  # fmt: skip
