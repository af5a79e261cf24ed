"""Text that outgrows a machine: a plan of groups of files, tasks from file to file, and the engines that run them.

plan.py                        which files go together, and what each result follows from
tasks.py, counts_file.py       counting, adding and encoding, each done once, wherever it runs
engines.py, ray_engine.py      this process, one part of several, or Ray
counting.py, set_encoding.py   the two jobs: counts of pre-tokens for training, the shards of a token set
"""
