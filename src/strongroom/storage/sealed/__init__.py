"""The sealed layer: a provider over another one, which then sees neither names nor values."""

from strongroom.storage.sealed.provider import sealed as sealed
