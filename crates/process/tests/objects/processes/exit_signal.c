// object: a child that tells its end by another signal than SIGCHLD (`clone`)
// status: refused: in place of SIGCHLD
// note: let it be made by fork, or run another program (exec)
#include "object.h"
#include <sys/syscall.h>

int main(void) {
    long child = syscall(SYS_clone, SIGUSR2, 0, 0, 0, 0);
    CHECK(child >= 0);
    if (!child)
        for (;;) pause();
    ready();
    while (go_on()) {}
    PASS();
}
