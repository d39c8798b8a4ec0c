"""Sweeps: many fits of one recipe with different values, on Ray Tune.

run.py       the whole way: space -> trials -> summary
space.py     what may vary: KEY=choice(…), uniform(…), loguniform(…), randint(…), lograndint(…)
ledger.py    which trials there are and what came of them, append-only, on this disk
search.py    which values the next trial gets: Optuna's TPE, behind Ray Tune's interface
trial.py     one trial, a process of Ray's: `services.training.train.train`, epoch by epoch
cluster.py   an embedded Ray, or the one at RAY_ADDRESS
parent.py    the MLflow run that the trials are children of, with the summary
figures.py   parallel coordinates, importance, history
"""
