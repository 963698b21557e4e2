// Answers with a value that hooks of its patch change, and with how many functions a backtrace finds from within the patched one. A thread
// of its own looks up frames all the time, as exceptions do.
#include <execinfo.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static int unit = 1;

__attribute__((noinline)) static int depth(void) {
    void *frames[32];
    return backtrace(frames, 32);
}

#ifdef FIXED
__attribute__((noinline)) int value(void) { return 100 * 5 * unit + depth(); }
#else
__attribute__((noinline)) int value(void) { return 100 * (4 + unit) + depth(); }
#endif

#if defined WAITS
void outlive_patch_before(void) { nanosleep(&(struct timespec){.tv_sec = 1}, NULL); }
#elif defined FAULTS
void outlive_patch_before(void) { *(volatile int *)16 = 1; }
#elif defined FORKS
void outlive_patch_before(void) { if (syscall(SYS_fork) == 0) _exit(0); }
#elif defined EMPTIES
static char page[4096] __attribute__((aligned(4096)));
void outlive_patch_before(void) { madvise(page, sizeof page, MADV_DONTNEED); }
#elif defined FIXED
void outlive_patch_before(void) { unit = 10; }
void outlive_patch_after(void) { unit++; }
void outlive_patch_revert(void) { unit = 1; }
#endif

static void *run(void *argument) {
    for (;;) {
        for (int i = 0; i < 100; i++) depth();
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    return argument;
}

static void serve(int in, int out) {
    char byte, line[64];
    while (read(in, &byte, 1) == 1) {
        int length = snprintf(line, sizeof line, "%d\n", value());
        if (write(out, line, length) != length) return;
    }
}

int main(int count, char **words) {
    pthread_t thread;
    pthread_create(&thread, NULL, run, NULL);
    if (count < 2) return 1;
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(atoi(words[1]))};
    int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&here, sizeof here) || listen(listener, 8)) return 1;
    for (;;) {
        int client = accept(listener, 0, 0);
        if (client < 0) continue;
        serve(client, client);
        close(client);
    }
}
