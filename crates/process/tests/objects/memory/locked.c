// object: locked memory (`mlock`, `mlock2`, `mlockall`)
// status: captured
// note: locked on the copy when that comes to life
#include "object.h"
#include <sys/mman.h>

#define P 4096

// Kilobytes locked, as the kernel counts them.
static long locked(void) {
    char line[128];
    long kilobytes = -1;
    FILE *status = fopen("/proc/self/status", "r");
    CHECK(status);
    while (fgets(line, sizeof line, status)) sscanf(line, "VmLck: %ld", &kilobytes);
    fclose(status);
    return kilobytes;
}

int main(void) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS;
    char *memory = mmap(0, 40 * P, PROT_READ | PROT_WRITE, flags, -1, 0);
    CHECK(memory != MAP_FAILED && mlock(memory, 4 * P) == 0);
    CHECK(mmap(0, P, PROT_READ | PROT_WRITE, flags | MAP_LOCKED, -1, 0) != MAP_FAILED);
    CHECK_EQUAL(locked(), 5 * 4);
    int pages = 5, step = 0;
    ready();
    do {
        memory[step % 40 * P]++;
        int page = 4 + step % 36;
        if (step / 36 % 2 == 0) {
            CHECK(mlock2(memory + page * P, P, step % 3 ? MLOCK_ONFAULT : 0) == 0);
            pages++;
        } else {
            CHECK(munlock(memory + page * P, P) == 0);
            pages--;
        }
        CHECK_EQUAL(locked(), pages * 4);
        step++;
    } while (go_on());
    PASS();
}
