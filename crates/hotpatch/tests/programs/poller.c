// A program that waits in poll for a time, which only the kernel knows the rest of: its thread is held for every call.
#include <poll.h>
#include <stdio.h>
#include <unistd.h>

#ifdef FIXED
__attribute__((noinline)) int value(void) { return 2; }
#else
__attribute__((noinline)) int value(void) { return 1; }
#endif

int main(void) {
    int ended_early = 0;
    char line[64];
    for (;;) {
        struct pollfd input = {.fd = 0, .events = POLLIN};
        int ready = poll(&input, 1, 3600 * 1000);
        if (ready <= 0) { ended_early++; continue; }
        if (read(0, line, sizeof line) <= 0) return 0;
        printf("%d %d\n", value(), ended_early);
        fflush(stdout);
    }
}
