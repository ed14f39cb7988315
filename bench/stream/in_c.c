/* What waking costs a program in C: the same work as the pings and crowds beside it, without Python.
 *
 *     in_c wake SAMPLES FILE [WRITER'S READER'S]   a ping, and the least that also brings bytes: two
 *                                                  lines of nanoseconds; the processors of both
 *     in_c crowd WAITERS SAMPLES FILE              SAMPLES posts to all of WAITERS threads, in 8
 *                                                  processes, which then read a byte of FILE: a
 *                                                  line of nanoseconds by the clock, and one of
 *                                                  the poster's processor time
 *     in_c crowd WAITERS SAMPLES                   the same, but the woken threads read nothing
 *
 * wakeup.py and crowd.py tell what is measured.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PIECE = 64, PROCESSES = 8, STACK = 1 << 16 };

static void require(int is_right, const char *what) {
    if (!is_right) {
        perror(what);
        exit(1);
    }
}

static int64_t now(clockid_t clock) {
    struct timespec time;
    require(clock_gettime(clock, &time) == 0, "clock_gettime");
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static void pause_for(int64_t nanoseconds) {
    struct timespec time = {nanoseconds / 1000000000, nanoseconds % 1000000000};
    nanosleep(&time, NULL);
}

static void *shared(size_t size) {
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    require(memory != MAP_FAILED, "mmap");
    return memory;
}

static void wait_for(sem_t *semaphore) {
    while (sem_wait(semaphore) != 0)
        ;
}

/* A child, which ends with this process; 0 in the child. */
static pid_t child(void) {
    pid_t parent = getpid(), pid = fork();
    require(pid >= 0, "fork");
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent)
            _exit(1);
    }
    return pid;
}

static void run_on(const char *processor) {
    cpu_set_t only;
    CPU_ZERO(&only);
    CPU_SET(atoi(processor), &only);
    require(sched_setaffinity(0, sizeof only, &only) == 0, "sched_setaffinity");
}

static void print_all(const int64_t *times, int count) {
    for (int index = 0; index < count; index++)
        printf("%lld%c", (long long)times[index], index == count - 1 ? '\n' : ' ');
}

static int wake(int samples, const char *path, const char *writers, const char *readers) {
    sem_t *semaphore = shared(sizeof *semaphore);
    _Atomic int64_t *end = shared(sizeof *end);
    int64_t *ends = shared(2 * samples * sizeof *ends), *began = calloc(2 * samples, sizeof *began);
    char piece[PIECE] = {0};
    int fd = open(path, O_RDWR | O_CREAT | O_APPEND | O_TRUNC, 0600);
    require(fd >= 0 && began != NULL, path);
    require(sem_init(semaphore, 1, 0) == 0, "sem_init");
    if (child() == 0) {
        if (readers)
            run_on(readers);
        for (int index = 0; index < samples; index++) {
            wait_for(semaphore);
            ends[index] = now(CLOCK_MONOTONIC);
        }
        for (int index = samples; index < 2 * samples; index++) {
            wait_for(semaphore);
            int64_t position = (int64_t)(index - samples) * PIECE;
            int64_t there = *end - position; /* more, if the writer was faster */
            require(there >= PIECE && pread(fd, piece, PIECE, position) == PIECE, "pread");
            ends[index] = now(CLOCK_MONOTONIC);
        }
        _exit(0);
    }
    if (writers)
        run_on(writers);
    for (int index = 0; index < 2 * samples; index++) {
        pause_for(1000000 + random() % 1000000);
        if (index >= samples)
            require(write(fd, piece, PIECE) == PIECE, "write");
        began[index] = now(CLOCK_MONOTONIC);
        if (index >= samples)
            *end += PIECE;
        sem_post(semaphore);
    }
    int status = 1;
    require(wait(&status) > 0 && status == 0, "the reader");
    for (int index = 0; index < 2 * samples; index++)
        ends[index] -= began[index];
    print_all(ends, samples);
    print_all(ends + samples, samples);
    return 0;
}

static sem_t *semaphores;
static _Atomic int *counts;
static int rings, file = -1;

static void *follow(void *argument) {
    int index = (int)(intptr_t)argument;
    char byte;
    for (int ring = 0; ring < rings; ring++) {
        wait_for(&semaphores[index]);
        if (file >= 0)
            require(pread(file, &byte, 1, 0) == 1, "pread");
        counts[index] = ring + 1;
    }
    return NULL;
}

static void follow_all(int waiters, int first) {
    pthread_t *threads = calloc(waiters, sizeof *threads);
    pthread_attr_t small;
    require(threads != NULL && pthread_attr_init(&small) == 0, "threads");
    pthread_attr_setstacksize(&small, STACK);
    for (int index = first; index < waiters; index += PROCESSES)
        require(
            pthread_create(&threads[index], &small, follow, (void *)(intptr_t)index) == 0, "thread");
    for (int index = first; index < waiters; index += PROCESSES)
        pthread_join(threads[index], NULL);
}

static int crowd(int waiters, int samples, const char *path) {
    semaphores = shared(waiters * sizeof *semaphores);
    counts = shared(waiters * sizeof *counts);
    rings = samples + 1; /* the first one meets threads that have just begun */
    if (path) {
        file = open(path, O_RDONLY);
        require(file >= 0, path);
    }
    for (int index = 0; index < waiters; index++)
        require(sem_init(&semaphores[index], 1, 0) == 0, "sem_init");
    for (int first = 0; first < PROCESSES; first++)
        if (child() == 0) {
            follow_all(waiters, first);
            _exit(0);
        }
    int64_t clock[rings], cpu[rings];
    for (int ring = 0; ring < rings; ring++) {
        for (int index = 0; index < waiters; index++)
            while (counts[index] < ring)
                pause_for(5000000);
        pause_for(30000000);
        clock[ring] = now(CLOCK_MONOTONIC), cpu[ring] = now(CLOCK_THREAD_CPUTIME_ID);
        for (int index = 0; index < waiters; index++)
            sem_post(&semaphores[index]);
        clock[ring] = now(CLOCK_MONOTONIC) - clock[ring];
        cpu[ring] = now(CLOCK_THREAD_CPUTIME_ID) - cpu[ring];
    }
    for (int number = 0; number < PROCESSES; number++) {
        int status = 1;
        require(wait(&status) > 0 && status == 0, "the waiters");
    }
    print_all(clock + 1, samples);
    print_all(cpu + 1, samples);
    return 0;
}

int main(int count, char **arguments) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if ((count == 4 || count == 6) && strcmp(arguments[1], "wake") == 0)
        return wake(
            atoi(arguments[2]), arguments[3], count == 6 ? arguments[4] : NULL,
            count == 6 ? arguments[5] : NULL);
    if ((count == 4 || count == 5) && strcmp(arguments[1], "crowd") == 0)
        return crowd(atoi(arguments[2]), atoi(arguments[3]), count == 5 ? arguments[4] : NULL);
    fputs("in_c wake SAMPLES FILE [WRITER'S READER'S] | crowd WAITERS SAMPLES [FILE]\n", stderr);
    return 2;
}
