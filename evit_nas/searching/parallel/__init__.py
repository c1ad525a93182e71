"""A search on many machines: Ray Tune runs its trials, Ray's tasks measure on its devices.

What is evaluated, in which order, and what goes on record is the same as without Ray: the driver proposes round by
round and is the one writer of the run folder, so a search that lost a worker, a node, its driver or the whole cluster
is resumed like any other. A cluster offers two things:

* an `Executor` whose calls are answered by the trials of one Tune experiment (`trials.py`): `Evaluator` and `Labels`
  use it where they would otherwise use processes of this machine;
* the `Device`s of the search (`devices.py`), each measured by a task that needs the resource of that device.

Ray is imported in this folder alone.
"""

from evit_nas.searching.parallel.cluster import Cluster

__all__ = ["Cluster"]
