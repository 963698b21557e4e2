// A program that waits in epoll_wait, in poll, in nanosleep and in a futex, and says when a wait ended before its time.
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#ifdef FIXED
__attribute__((noinline)) int value(void) { return 2; }
#else
__attribute__((noinline)) int value(void) { return 1; }
#endif

int main(void) {
    int set = epoll_create1(0), interrupted = 0;
    struct epoll_event event = {.events = EPOLLIN};
    epoll_ctl(set, EPOLL_CTL_ADD, 0, &event);
    char line[64];
    for (;;) {
        int ready = epoll_wait(set, &event, 1, -1);
        if (ready < 0) { interrupted++; continue; }
        if (!fgets(line, sizeof line, stdin)) return 0;
        printf("%d %d\n", value(), interrupted);
        fflush(stdout);
    }
}
