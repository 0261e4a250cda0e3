"""`naylence.fame.factory`: expressions in configurations."""

from __future__ import annotations


class Expressions:
    """Writes the expressions that `root_config` can hold."""

    @staticmethod
    def env(name: str, default: object = None) -> str:
        """A variable's value, or else the default.

        >>> Expressions.env("FAME_LISTENER_PORT", 8000)
        '${env:FAME_LISTENER_PORT:8000}'
        """
        return f"${{env:{name}}}" if default is None else f"${{env:{name}:{default}}}"
