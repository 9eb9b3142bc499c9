# ARD_FAST_SANITIZE: the sanitizer of everything built below.
if(ARD_FAST_SANITIZE STREQUAL "address")
  # With UBSan in the same build. Alignment is part of that: a 16-byte access to an unaligned address, a fault on a GPU,
  # is reported.
  add_compile_options(-fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all -fno-omit-frame-pointer)
  add_link_options(-fsanitize=address,undefined)
elseif(ARD_FAST_SANITIZE STREQUAL "thread")
  add_compile_options(-fsanitize=thread)
  add_link_options(-fsanitize=thread)
elseif(ARD_FAST_SANITIZE)
  message(FATAL_ERROR "ARD_FAST_SANITIZE: expected address, thread or nothing, got "
                      "'${ARD_FAST_SANITIZE}'")
endif()
