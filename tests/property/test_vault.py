"""The vault: a handle gives its own credentials or an error, never nobody's."""

import pytest

from crio_core.cri import AuthConfig
from crio_core.errors import OperationError
from crio_io.vault import KEPT_MAX, Vault


def test_forgotten_credentials_are_an_error_and_not_those_of_nobody() -> None:
    """A pull that goes on anonymously would fail by the wrong name, or take a public image for a private one."""
    vault = Vault()
    first, used = vault.keep(AuthConfig(username="first")), vault.keep(AuthConfig(username="used"))
    for number in range(KEPT_MAX - 1):
        vault.keep(AuthConfig(username=f"u{number}"))
        assert vault.get(used).username == "used", "what is in use is not forgotten"
    with pytest.raises(OperationError) as caught:
        vault.get(first)
    assert caught.value.reason == "CREDENTIALS_FORGOTTEN"
    assert vault.get(vault.keep(AuthConfig())) == AuthConfig()
