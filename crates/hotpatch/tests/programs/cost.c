// Picoseconds of a call to a function that does nothing, by the thread's own processor time: the least of several rounds.
#include <stdio.h>
#include <time.h>

#ifdef FIXED
__attribute__((noinline, noipa)) int value(int x) { return x + 2; }
#else
__attribute__((noinline, noipa)) int value(int x) { return x + 1; }
#endif

#define CALLS 20000000L

static long long now(void) {
    struct timespec time;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

int main(void) {
    char line[64];
    while (fgets(line, sizeof line, stdin)) {
        long long least = 0;
        volatile int sum = 0;
        for (int round = 0; round < 9; round++) {
            long long begun = now();
            int local = 0;
            for (long i = 0; i < CALLS; i++) local = value(local);
            sum = local;
            long long took = (now() - begun) * 1000 / CALLS;
            if (!least || took < least) least = took;
        }
        printf("%lld %d\n", least, sum > CALLS);
        fflush(stdout);
    }
    return 0;
}
