// object: `mlockall` for mappings to come
// status: captured
#include "object.h"
#include <sys/mman.h>

#define P 4096

static int is_locked(void *at) {
    char line[512];
    int here = 0, found = -1;
    FILE *smaps = fopen("/proc/self/smaps", "r");
    CHECK(smaps);
    while (fgets(line, sizeof line, smaps)) {
        unsigned long start, end;
        if (sscanf(line, "%lx-%lx ", &start, &end) == 2) here = (unsigned long)at >= start && (unsigned long)at < end;
        else if (here && !strncmp(line, "VmFlags:", 8)) found = strstr(line, " lo") != 0;
    }
    fclose(smaps);
    return found;
}

int main(void) {
    CHECK(mlockall(MCL_FUTURE | MCL_ONFAULT) == 0);
    char *old = 0;
    ready();
    do {
        char *new = mmap(0, 4 * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(new != MAP_FAILED);
        new[P] = 1;
        CHECK_EQUAL(is_locked(new), 1);
        if (old) CHECK_EQUAL(is_locked(old), 1);
        if (old) CHECK(munmap(old, 4 * P) == 0);
        old = new;
    } while (go_on());
    PASS();
}
