"Processes that go on from this one, in which all is imported, and are else processes of their own"
import os, signal, sys
from multiprocessing import get_context
import torch
from accelerate.state import AcceleratorState
from sadlr import cli

def forked(work, *args, out=os.devnull, err=os.devnull, cwd='.', **environment):
    "A process that calls `work`; `out` and `err` are files or their numbers"
    def child():
        for name, fd, file in ('stdout', 1, out), ('stderr', 2, err):
            with open(file, 'w') as stream: os.dup2(stream.fileno(), fd)
            setattr(sys, name, open(fd, 'w', buffering=1 if fd == 2 else -1, closefd=False)) # as Python buffers them
        signal.signal(signal.SIGINT, signal.default_int_handler) # a shell in the background has it ignored
        os.environ.update(environment)
        os.chdir(cwd)
        torch.set_num_threads(1) # those of this process are not in a fork
        AcceleratorState._reset_state(reset_partial_state=True)
        work(*args)
    process = get_context('fork').Process(target=child)
    process.start()
    return process

def command(*words):
    "What a console script does"
    sys.argv = [f'/usr/bin/{words[0]}', *map(str, words[1:])]
    getattr(cli, words[0])()
