"""Many manifests -> one: concatenate, stack, merge; what differs between files, and what is done about it."""

from refindex.join.joiner import alike, join
from refindex.join.member import Member
from refindex.join.options import JoinOptions
from refindex.join.removal import without
from refindex.join.result import Joined

__all__ = ["JoinOptions", "Joined", "Member", "alike", "join", "without"]
