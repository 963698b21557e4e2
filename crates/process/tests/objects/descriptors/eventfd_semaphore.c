// object: eventfd, as a semaphore between two processes
// status: captured
#include "object.h"
#include <sys/eventfd.h>
#include <sys/mman.h>

int main(void) {
    int go = eventfd(0, EFD_SEMAPHORE), done = eventfd(0, 0);
    if (!fork()) {
        uint64_t value;
        while (read(go, &value, 8) == 8) {
            if (value != 1) _exit(1);
            if (write(done, &value, 8) != 8) _exit(1);
        }
        _exit(1);
    }
    ready();
    do {
        uint64_t value = 5, sum = 0;
        CHECK(write(go, &value, 8) == 8);
        while (sum < 5) {
            CHECK(read(done, &value, 8) == 8);
            sum += value;
        }
        CHECK_EQUAL(sum, 5);
    } while (go_on());
    PASS();
}
