// object: resource limits, also below what is in use: no more descriptors, processes, address space
// status: captured
#include "object.h"
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>

static void check(void) {
    struct rlimit limit;
    CHECK(!getrlimit(RLIMIT_NOFILE, &limit) && limit.rlim_cur == 0 && limit.rlim_max == 0);
    CHECK(!getrlimit(RLIMIT_NPROC, &limit) && limit.rlim_cur == 0 && limit.rlim_max == 0);
    CHECK(!getrlimit(RLIMIT_AS, &limit) && limit.rlim_cur == 4096 && limit.rlim_max == RLIM_INFINITY);
    CHECK(!getrlimit(RLIMIT_FSIZE, &limit) && limit.rlim_cur == 12345);
    CHECK(!getrlimit(RLIMIT_CORE, &limit) && limit.rlim_cur == 0);
    CHECK(dup(5) < 0 && errno == EMFILE);
    CHECK(mmap(0, 65536, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED && errno == ENOMEM);
}

int main(void) {
    int ends[2];
    CHECK(!pipe(ends));
    CHECK(dup2(ends[0], 5) == 5 && dup2(ends[1], 700) == 700);
    struct rlimit none = {0, 0}, little = {4096, RLIM_INFINITY}, some = {12345, 67890}, core = {0, RLIM_INFINITY};
    CHECK(!setrlimit(RLIMIT_NPROC, &none));
    CHECK(!setrlimit(RLIMIT_FSIZE, &some));
    CHECK(!setrlimit(RLIMIT_CORE, &core));
    CHECK(!setrlimit(RLIMIT_NOFILE, &none));
    CHECK(!setrlimit(RLIMIT_AS, &little));
    ready();
    do {
        check();
        char byte = 1;
        CHECK(write(700, &byte, 1) == 1);
        CHECK(read(5, &byte, 1) == 1 && byte == 1);
    } while (go_on());
    check();
    PASS();
}
