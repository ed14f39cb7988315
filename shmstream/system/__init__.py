"""What the operating system gives.

locks          kernel locks, which tell whether a writer or a reader is alive
process        this process: its identity, and what must happen when it ends or forks
threads        threads that are used again
repeating      calls a function again and again in a thread
exit_watcher   tells at once that another process has ended
greenlets      whether gevent or eventlet has replaced the threads, and how a greenlet pauses
buffers        the bytes of any Python object that has bytes
refusals       the methods of a file that some of our files refuse, with what to do instead
copying        moves bytes of a file to a destination, by the kernel where that is possible
files          opens files that other programs may have put there
tcp            what the kernel knows of a TCP connection
descriptors    room for descriptors, made before they are needed
steps          several steps that are all taken, whatever fails
temporary      a temporary folder of one process, which a later process removes after a kill
signals        how a signal ends a program in good order, and what else code of users may raise
"""
