"""How tasks run: processes of this machine or a Ray cluster, resumable at every task.

In: tasks: functions from files to files, with a key of what decides their outcome.
Out: their outcomes in a workspace, each with a record that says it is done.
Begin with: tasks.py, engine.py, ray_engine.py, workspace.py. memory_limit.py turns `--memory` into numbers of
    processes and sizes of buffers.
Heavy libraries: faiss (engine.py), ray (ray_engine.py, ray_cluster.py).
"""
