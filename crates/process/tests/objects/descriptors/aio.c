// object: kernel AIO (`io_setup`)
// status: hidden
// note: ENOSYS; nginx and MySQL go on with threads or plain reads
#include "object.h"
#include <sys/syscall.h>

int main(void) {
    ready();
    do {
        unsigned long context = 0;
        CHECK(syscall(SYS_io_setup, 8, &context) < 0 && errno == ENOSYS);
    } while (go_on());
    PASS();
}
