// object: two processes with one table of descriptors, or one working directory (`clone` with CLONE_FILES, CLONE_FS)
// status: refused: CLONE_FILES
// note: use threads, or processes with descriptors of their own; noticed where the kernel has BPF and its type information
#include "object.h"
#include <sched.h>
#include <sys/syscall.h>

int main(void) {
    long child = syscall(SYS_clone, CLONE_FILES | SIGCHLD, 0, 0, 0, 0);
    CHECK(child >= 0);
    if (!child)
        for (;;) pause();
    ready();
    while (go_on()) {}
    PASS();
}
