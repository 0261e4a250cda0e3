"""The provider `encrypted-postgres`: a space of PostgreSQL of which the server can read nothing."""

from strongroom.storage.postgres.provider import SealedSpace
from strongroom.storage.sealed.provider import sealed

EncryptedPostgresProvider = sealed(SealedSpace)
