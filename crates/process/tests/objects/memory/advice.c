// object: `MADV_DONTDUMP`, `MADV_HUGEPAGE`, `MADV_NOHUGEPAGE`
// status: captured
// note: read-ahead advice is not kept; NUMA policies (`mbind`, `set_mempolicy`) and `process_madvise` are hidden (ENOSYS), guard pages (`MADV_GUARD_INSTALL`) too (EINVAL)
#include "object.h"
#include <sys/mman.h>
#include <sys/syscall.h>

#define M (2ul << 20)

static int has(char *at, const char *flag) {
    char line[512];
    int here = 0, found = -1;
    FILE *smaps = fopen("/proc/self/smaps", "r");
    CHECK(smaps);
    while (fgets(line, sizeof line, smaps)) {
        unsigned long start, end;
        if (sscanf(line, "%lx-%lx ", &start, &end) == 2) here = (unsigned long)at >= start && (unsigned long)at < end;
        else if (here && !strncmp(line, "VmFlags:", 8)) found = strstr(line, flag) != 0;
    }
    fclose(smaps);
    return found;
}

int main(void) {
    char *memory = mmap(0, 10 * M, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    CHECK(madvise(memory, M, MADV_DONTDUMP) == 0 && madvise(memory + 2 * M, M, MADV_NOHUGEPAGE) == 0);
    ready();
    int step = 0, on[10] = {0};
    do {
        int part = 3 + step % 7;
        on[part] = !on[part];
        CHECK(madvise(memory + part * M, M, on[part] ? MADV_DONTDUMP : MADV_DODUMP) == 0);
        for (int at = 3; at < 10; at++) CHECK_EQUAL(has(memory + at * M, " dd"), on[at]);
        CHECK_EQUAL(has(memory, " dd"), 1);
        CHECK_EQUAL(has(memory + 2 * M, " nh"), 1);
        memory[step % 10 * M]++;
        CHECK(syscall(SYS_set_mempolicy, 0, 0, 0) < 0 && errno == ENOSYS);
        CHECK(madvise(memory, 4096, 102) < 0 && errno == EINVAL);
        step++;
    } while (go_on());
    PASS();
}
