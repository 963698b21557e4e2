// object: io_uring
// status: hidden
// note: ENOSYS; programs fall back to epoll
#include "object.h"
#include <sys/syscall.h>

int main(void) {
    char parameters[512] = {0};
    ready();
    do {
        CHECK(syscall(SYS_io_uring_setup, 8, parameters) < 0 && errno == ENOSYS);
    } while (go_on());
    PASS();
}
