// A program whose only thread waits, when it is told to, for a child that shares its memory: a sleep that nothing interrupts.
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#ifdef FIXED
__attribute__((noinline)) int value(void) { return 2; }
#else
__attribute__((noinline)) int value(void) { return 1; }
#endif

int main(void) {
    char line[64];
    while (fgets(line, sizeof line, stdin)) {
        if (line[0] == 'v' && vfork() == 0) {
            struct timespec time = {.tv_sec = 2};
            nanosleep(&time, NULL);
            _exit(0);
        }
        printf("%d\n", value());
        fflush(stdout);
    }
    return 0;
}
